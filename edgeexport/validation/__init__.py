"""Anything to figures: compare (Parity), evaluate (Score), measure (Measurement), judge (Verdict)."""
