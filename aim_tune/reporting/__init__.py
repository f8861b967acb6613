"""Results to words, tables, pictures, and one self-contained HTML file. Decides nothing."""
