"""Source group -> target group: scores of trainings on one group, method beside method."""
