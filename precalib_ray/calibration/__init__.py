"""How far confidence can be trusted: calibration metrics and scores that tell unknown inputs."""
