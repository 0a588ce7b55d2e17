// What a program of someone else's would write against the types that openapi-typescript makes.
import type { components, paths } from "./k9.js";

type Embedding = paths["/models/{model_version}/embeddings/{product_id}"];
type Search = paths["/models/{model_version}/search"]["post"];
type Events = paths["/builds/{build_id}/events"]["get"];
type Report = components["schemas"]["ReportItem"];
type Problem = components["schemas"]["Problem"];

const place: Embedding["put"]["parameters"]["path"] = { model_version: "m", product_id: "a" };
const body: Embedding["put"]["requestBody"]["content"]["application/json"] = { vector: [1, 2] };
const absent: Embedding["put"]["parameters"]["query"] = {};
const chosen: Embedding["put"]["parameters"]["query"] = { metric: "ip" };
// @ts-expect-error There is no such metric.
const wrong: Embedding["put"]["parameters"]["query"] = { metric: "hamming" };

const question: Search["requestBody"]["content"]["application/json"] = { product_id: "a", k: 3 };
// @ts-expect-error There is no such field.
const misspelt: Search["requestBody"]["content"]["application/json"] = { product: "a" };

export async function search(url: string, token: string): Promise<string[]> {
  const reply = await fetch(`${url}/models/${place.model_version}/search`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  if (!reply.ok) {
    const problem: Problem = await reply.json();
    throw new Error(`${problem.status} ${problem.title}: ${problem.errors?.[0]?.field ?? ""}`);
  }
  const found: Search["responses"][200]["content"]["application/json"] = await reply.json();
  return "neighbors" in found ? found.neighbors.map((each) => each.product_id) : [];
}

export async function events(reply: Response): Promise<string> {
  const text: Events["responses"][200]["content"]["text/event-stream"] = await reply.text();
  return String(text);
}

export function shown(report: Report): string {
  return `${report.title}, ${report.favorites?.length ?? 0} favourites`;
}

export const all = [absent, body, chosen, misspelt, wrong];
