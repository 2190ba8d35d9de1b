"""The jobs: sharding, training and sampling on Ray, tracked in MLflow, behind the `ddpm` command."""
