from redetr.cli import main

main()
