// Adds an image, then finds things in the collection: npm start http://localhost:50050 mug.jpg "red mug"
import { readFile } from "node:fs/promises";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { IngestOutcome, RegionSearchService } from "./gen/regionsearch/v1/region_search_pb.js";
import { Level } from "./gen/regionsearch/v1/search_pb.js";

const [baseUrl, path, words] = process.argv.slice(2);
const client = createClient(RegionSearchService, createGrpcTransport({ baseUrl }));

const value = await readFile(path);
const added = await client.ingestImage({ name: path, image: { source: { case: "encoded", value } } });
console.log(IngestOutcome[added.outcome], added.imageId);

const { hits } = await client.search({ query: { texts: [words] }, level: Level.REGION, pageSize: 3 });
for (const { rank, score, image, record } of hits) {
  const { xMin, yMin, xMax, yMax } = record!.box!;
  console.log(rank, score.toFixed(3), image!.name, [xMin, yMin, xMax, yMax]);
}
