"""Experts: how tokens are routed to them, how their loads are balanced, on which ranks they lie, what that costs."""
