-- grain: one row per document, with its metadata as JSON
create or replace view documents as
select document_id, text, source, metadata::json as metadata
from stored.documents
