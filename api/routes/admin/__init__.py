"""The routes of admins and operators."""
