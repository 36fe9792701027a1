"""Which cubes to annotate? Simulated annotation loops on DELiVR, whose labels are revealed for chosen cubes only."""
