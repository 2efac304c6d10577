"""The methods of the parameter server; `rule_factory` makes the rules of one from its name."""
