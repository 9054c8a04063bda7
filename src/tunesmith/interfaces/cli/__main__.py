from tunesmith.interfaces.cli import main

main()
