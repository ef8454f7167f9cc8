"""A run looked at before any chip is rented: what its compiled step holds, moves and costs."""
