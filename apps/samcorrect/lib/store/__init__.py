"""Images, label versions and the ledger on disk."""
