"""The MLflow server."""

SERVE = ["mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", "postgresql+psycopg://mlflow@/mlflow"]
BASIC_AUTH = """\
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg://mlflow@/mlflow
admin_username = admin
"""
