"""The jobs: sharding, training and sampling on Ray, tracked in MLflow, behind the `ddpm` command."""

from .credentials import load_credentials

load_credentials()  # in whichever process of a job: the command, and Ray's workers, which call into one of our modules
