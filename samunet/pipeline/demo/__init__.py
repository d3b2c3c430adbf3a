"""samunet_demo: the whole pipeline on generated cases, with a page that shows what came out."""
