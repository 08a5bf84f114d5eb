"""The machinery under the package: no public name lives here."""
