"""vlp-bench: pre-train and compare medical vision-language methods on chest X-rays and reports."""

__version__ = "0.1.0"
