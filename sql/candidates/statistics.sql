-- grain: one row: what lexical weights need to know of the whole corpus
with corpus as (
    select count(*) as n_sequences, avg(n_tokens) as mean_length
    from sequences
)
select
    n_sequences,
    mean_length,
    (select avg(ln(n_sequences - document_frequency + 0.5) - ln(document_frequency + 0.5)) from terms) as mean_idf
from corpus
