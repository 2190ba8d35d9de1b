"""`make lint-infra`: what infra/ describes, judged without a cluster."""
