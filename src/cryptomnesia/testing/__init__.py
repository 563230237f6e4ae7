"""What tests of methods need, also those of other packages: closed forms, miniature pipelines and named checks."""
