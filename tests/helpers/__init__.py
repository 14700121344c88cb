"""What tests share: small models, fake nodes, whole runs, deployments."""
