"""What a fingerprint holds: one file per thing that changes a picture."""
