from must_pipeline.cli import main

main()
