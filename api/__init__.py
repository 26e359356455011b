"""The front door: takes jobs over HTTP, hands them to the queue, brings results home. Never imports torch."""
