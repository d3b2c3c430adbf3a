"""samunet_run_all: plan, train every fold of some methods, compare them, write the report."""
