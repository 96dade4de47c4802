"""`python -m otel_cmb.cli`."""

from otel_cmb.cli import main

if __name__ == "__main__":
    main()
