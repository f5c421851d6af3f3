-- grain: one row per (method, query, dataset) of a run: influences summed over the dataset's sequences, in nats
-- not a mean: a larger dataset has more to say; and not of documents: a sequence belongs to the one that it begins in
-- a dataset is a corpus file ('file', named by its part), a 'source', or what a field of the documents' metadata says
create or replace macro dataset_influences(run, "by" := 'file') as table
select
    i.method,
    i.query_id,
    case "by"
        when 'file' then s.part
        when 'source' then d.source
        else json_extract_string(d.metadata, '$."' || "by" || '"')
    end as dataset,
    sum(i.influence order by i.influence) as influence,
    count(*) as n_sequences
from influences i
join sequences s on s.sequence_id = i.sequence_id
join documents d on d.document_id = s.document_id
where i.run_id = run
group by all
order by i.method, i.query_id, dataset
