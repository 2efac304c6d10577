"""Features Replay (HUO chapter 6, alg. 11).

The forward ("play") keeps no graph, only its input. Stage k (counted from 1) later re-runs
("replays") the input of batch t+k-K with its current weights and back-propagates the error
gradient that stage k+1 produced at iteration t-1:

    delta_k^t = d f(w^{t-1}) / d h_{L_k}^{t+k-K}                   (6.7)
    g_k^t     = (d h~_{L_k}^t / d w_k^t) delta_k^t                 (6.8)

Memory is one graph and K-k+1 inputs at stage k; time is one more forward wherever D_k > 0. At the
last stage play and replay are the same computation, which is made once.
"""

from raylab.algorithms.pipeline.method import PipelineMethod

__all__ = ["FR"]

FR = PipelineMethod(
    name="fr",
    title="Features Replay",
    source="HUO alg. 11; eq. 6.7-6.9",
    link_delay=1,
    replay=True,
)
"""Link delay 1 with replay. The running statistics of batch normalisation move in the replay
only, once a batch; the play updates nothing."""
