"""What a release is made of, and what makes one: `make licences`, `make audit`, `make release`."""
