"""``python -m medx VERB``: the console script, where it is not on the path."""

from medx.cli import main

if __name__ == "__main__":
    main()
