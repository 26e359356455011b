"""What talks to a running colqueue, or starts one. Imports `shared` only; nothing here needs torch or Celery."""
