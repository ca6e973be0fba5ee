"""The report's page: one html document that needs nothing but itself."""
