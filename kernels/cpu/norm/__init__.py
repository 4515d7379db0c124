"""Add and RMSNorm."""
