"""Image sets in Parquet files, read where they lie."""
