"""What the ledger records, one file a subject; `store/ledger.py` puts them together."""
