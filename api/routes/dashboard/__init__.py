"""The routes of the dashboard: its files, its sessions, and the sign-in of people."""
