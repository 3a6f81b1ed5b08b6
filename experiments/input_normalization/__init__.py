"""Why inputs are standardized: how round is the bowl, how many steps does descent need in it?"""
