"""``python -m fedmitr_app``: the command line where its script is not on the path."""

from fedmitr_app.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
