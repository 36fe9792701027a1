"""From downloads to nnU-Net datasets: sources found and paired, cases planned, cases written."""
