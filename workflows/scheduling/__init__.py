"""Commands at their time, off Kubernetes: cron lines, schedules in a database, and the daemon that runs them."""
