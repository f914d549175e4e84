"""`python -m toolkit` is `toolkit`."""

import sys

try:
    from toolkit.cli import main
except KeyboardInterrupt:  # Ctrl-C before it has begun
    sys.exit(130)

if __name__ == "__main__":
    main()
