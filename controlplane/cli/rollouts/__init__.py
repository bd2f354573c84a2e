"""`flotilla rollout`: start, steer and watch rollouts."""
