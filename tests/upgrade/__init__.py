"""An earlier release beside the present code, on the same tables: `make upgrade-test`."""
