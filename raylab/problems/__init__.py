"""Problems of the parameter server: losses on rows of data, their gradients and duals."""
