"""What a user asks for (job spec), what a job can be (states), and what processes say to one another (wire, api).

Only the standard library and pydantic; everything above may import it, it imports nothing above `errors`.
"""
