"""The part with the model: embeds shards of jobs in batches across jobs and keeps the rows. Never calls the api."""
