// Runs one scenario of the Vercel AI SDK against a server and prints what a user of the SDK gets, as JSON.
// usage: node drive.mjs SCENARIO BASE_URL MODEL
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const [scenario, baseURL, modelName] = process.argv.slice(2);
const compatible = createOpenAICompatible({
  name: "penstock",
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = compatible(modelName);
const prompt = "What is the weather in Oslo?";
const weather = tool({
  description: "Weather of a city",
  inputSchema: z.object({ city: z.string() }),
});
const person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(150) });

async function streamed(options) {
  const result = streamText({ model, prompt, temperature: 0, maxOutputTokens: 200, ...options });
  const parts = [];
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    parts.push(part.type);
  }
  return {
    parts,
    text: await result.text,
    reasoning: await result.reasoningText,
    toolCalls: await result.toolCalls,
    finishReason: await result.finishReason,
    usage: await result.usage,
  };
}

async function plain(options) {
  const result = await generateText({ model, prompt, temperature: 0, maxOutputTokens: 200, ...options });
  const { text, reasoningText: reasoning, toolCalls, finishReason, usage } = result;
  return { text, reasoning, toolCalls, finishReason, usage };
}

const scenarios = {
  text: () => plain({}),
  "text-streamed": () => streamed({}),
  "tools": () => plain({ tools: { weather } }),
  "tools-streamed": () => streamed({ tools: { weather } }),
  "tools-required": () => plain({ tools: { weather }, toolChoice: "required" }),
  "tools-named": () => streamed({ tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } }),
  object: async () => {
    const output = Output.object({ schema: person });
    const result = await generateText({ model, prompt, temperature: 1, seed: 7, maxOutputTokens: 300, output });
    return { object: result.output };
  },
  "openai-provider": async () => {
    const openai = createOpenAI({ baseURL, apiKey: "none" });
    return plain({ model: openai.chat(modelName) });
  },
  embeddings: async () => {
    const { embeddings, usage } = await embedMany({
      model: compatible.textEmbeddingModel(modelName),
      values: ["sunny day at the beach", "rainy afternoon in the city"],
    });
    return { embeddings, usage };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
