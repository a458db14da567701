"""Driving and scoring it: the rules of the CARLA leaderboard, applied to drives in any simulator."""
