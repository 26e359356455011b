"""What every part agrees on: the job, its errors, the wire, the queue. Imports none of the parts."""
