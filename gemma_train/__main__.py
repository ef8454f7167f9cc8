"""`python -m gemma_train` is `gemma-train`."""

from gemma_train.commands.command_line import main

if __name__ == "__main__":
    main()
